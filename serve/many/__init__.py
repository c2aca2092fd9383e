"""Many students on one base: their adapters come and go in one engine, each behind an app of its own."""

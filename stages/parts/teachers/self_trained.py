"""The embedded teacher: linear models over vectors and TF-IDF, trained on their own most confident labels.

It needs about a hundred gold rows, the label names and an unlabelled pool, and combines four known methods:

- Vectors of a pretrained sentence encoder, less their mean over the pool: texts that mean the same lie close together.
- Latent semantic analysis of the pool, in several views: a class is recognised by words that its few gold rows lack.
- Softmax regression whose classes share strength along the similarity of their names: a prior covariance over classes,
  as in multi-task learning (Evgeniou et al. 2005). What one intent learns about "cash withdrawal" helps every intent
  with these words in its name.
- Class-balanced self-training (CBST, Zou et al. 2018): each round adds the most confident rows of every class to the
  training rows, under the label that the last round gave them.

`make bench-embedded` measures it with and without vectors, over five draws of the gold rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_union
from sklearn.preprocessing import normalize

from stages.parts.data.rows import Row
from stages.parts.encoder.encoder import centred
from stages.parts.task.features import characters, words
from stages.parts.task.labels import NONE_OF_THESE

TOPICS = 300  # LSA dimensions
NAME_SHARING = 10.0  # weight of the names' similarity in the prior covariance of classes; flat between 5 and 30
PENALTY = 1.0  # of the squared weights
GOLD_WEIGHT = 5.0  # of a gold row or a label's name; a self-labelled row has 1
ROUNDS = 6
STEPS, QUICK_STEPS = 40, 10  # maximum L-BFGS steps of a regression
FINAL_SHARE = 0.9  # of a class's expected rows, self-labelled in the last round
SKEW_P = 0.01  # classes count as skewed if even ones would give such gold counts less often than this
FOLDS = 4  # of the gold rows, for cross-fitting
MEANING_SHARE = 2 / 3  # of the encoder's view in the mean with one view of words and characters
MEANING_MARGIN = 0.2  # nats a gold row by which the encoder's view may predict worse before it is left out

Matrix = np.ndarray


def named_labels(labels: Sequence[str]) -> list[int]:
    """Return the numbers of the labels whose names describe their texts: all but NONE_OF_THESE."""
    return [number for number, label in enumerate(labels) if label != NONE_OF_THESE]


def class_coupling(names: Sequence[str]) -> Matrix:
    """Return the square root [K, K] of the prior covariance of K classes: identity plus cosine similarity of names."""
    spelling = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit_transform(names)
    values, vectors = np.linalg.eigh(np.eye(len(names)) + NAME_SHARING * (spelling @ spelling.T).toarray())
    return (vectors * np.sqrt(values)) @ vectors.T


def coupled_softmax_regression(
    rows: Matrix, classes: Matrix, weights: Matrix, coupling: Matrix, start: Matrix, steps: int
) -> Matrix:
    """Fit a softmax regression on rows [N, D] with class numbers [N] and row weights [N], in at most `steps` of L-BFGS.

    `start` and the result are uncoupled weights [D + 1, K], the bias last: logits are rows @ result @ coupling.
    """
    count, width = rows.shape
    one_hot = np.eye(len(coupling))[classes]
    design = np.hstack([rows, np.ones((count, 1))])

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        free = flat.reshape(width + 1, -1)
        logits = design @ free @ coupling
        penalised = free * PENALTY
        penalised[-1] = 0  # the bias is free: it holds a class's share
        value = -(weights * log_softmax(logits, axis=1)[np.arange(count), classes]).sum() + (free * penalised).sum() / 2
        return value, (
            design.T @ (weights[:, None] * (softmax(logits, axis=1) - one_hot)) @ coupling + penalised
        ).ravel()

    return minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": steps}).x.reshape(
        width + 1, -1
    )


def expected_shares(gold: Matrix, classes: int) -> Matrix:
    """Return each class's expected share of the pool [K].

    Even shares, unless a chi-square test of the gold counts rejects them; then the gold rows' own, smoothed by one row.
    """
    counts = np.bincount(gold, minlength=classes)
    if chisquare(counts).pvalue >= SKEW_P:
        return np.full(classes, 1 / classes)
    return (counts + 1) / (counts + 1).sum()


@dataclass
class View:
    """One representation of a text: TF-IDF, projected onto `topics` [D, T]. The first of its terms are `words`."""

    vectorizer: TfidfVectorizer
    topics: Matrix
    words: Matrix

    def vectors(self, texts: Sequence[str]) -> Matrix:
        """Return the texts' unit vectors in topic space [N, D]."""
        return normalize(self.vectorizer.transform(texts) @ self.topics.T)


class SelfTraining:
    """The training data, vectorised once, and the training itself.

    `reviewed` rows have a person's label like gold rows, but were chosen for being hard: their labels' frequencies say
    nothing about the pool, so `expected_shares` never counts them. `meanings` are the encoder's unit vectors [N, D] of
    pool, gold, reviewed and the names of `named` labels, in this order; None without an encoder.
    """

    def __init__(
        self,
        pool: Sequence[str],
        gold: Sequence[Row],
        labels: Sequence[str],
        seed: int,
        reviewed: Sequence[Row] = (),
        meanings: Matrix | None = None,
    ) -> None:
        # The words "none of these" describe none of its texts: no training row, and no similarity to other names.
        named = named_labels(labels)
        names = [labels[number].replace("_", " ") for number in named]
        documents = [*pool, *(row["text"] for row in (*gold, *reviewed)), *names]
        self.labels, self.seed = labels, seed
        self.coupling = np.eye(len(labels))
        self.coupling[np.ix_(named, named)] = class_coupling(names)
        self.documents = documents
        self.views: list[View] = []
        self.vectors: list[Matrix] = []  # of all documents, one matrix [N, D] a view
        self.shares: list[float] | None = None  # of the views in the mean; None: even
        self.mean: Matrix | None = None  # of the pool's meanings, if they are a view

        self.gold_classes, reviewed_classes = (
            np.array([labels.index(row["label"]) for row in rows], int) for rows in (gold, reviewed)
        )
        # Row numbers in `vectors`.
        self.pool = np.arange(len(pool))
        self.gold = len(pool) + np.arange(len(gold))
        self.reviewed_and_names = np.arange(len(pool) + len(gold), len(documents))
        self.reviewed_and_name_classes = np.concatenate([reviewed_classes, named]).astype(int)
        self.add_text_view(make_union(words(2), characters(2, 5)))
        if meanings is None or not self.add_meanings(meanings):
            self.add_text_view(words(2))
            self.add_text_view(characters(3, 5))

    def add_text_view(self, vectorizer: TfidfVectorizer | FeatureUnion) -> None:
        """Fit a view of terms on all documents."""
        tfidf = vectorizer.fit_transform(self.documents)
        svd = TruncatedSVD(min(TOPICS, min(tfidf.shape) - 1), random_state=self.seed).fit(tfidf)
        of_words = vectorizer.transformer_list[0][1] if isinstance(vectorizer, FeatureUnion) else vectorizer
        terms = of_words.get_feature_names_out() if of_words.analyzer != "char_wb" else np.empty(0, str)
        self.views.append(View(vectorizer, svd.components_, terms))
        self.vectors.append(normalize(svd.transform(tfidf)))

    def add_meanings(self, meanings: Matrix) -> bool:
        """Add the encoder's view unless it predicts gold labels clearly worse than terms do, and return whether.

        An encoder that does not know the language or the jargon of the texts would outvote the terms otherwise. Judged
        by cross-fitted log-likelihood without self-training: seconds, and less noisy than a hundred rows' accuracy.
        """
        self.mean = meanings[self.pool].mean(axis=0)
        self.vectors.append(centred(meanings, self.mean))
        of_terms, of_meanings = (self.cross_entropy(vectors) for vectors in self.vectors)
        if of_meanings > of_terms + MEANING_MARGIN:
            print(
                f"the encoder's vectors predict gold labels worse than terms do ({of_meanings:.2f} against "
                f"{of_terms:.2f} nats a row): the teacher does without them"
            )
            self.mean = None
            self.vectors.pop()
            return False
        self.shares = [1 - MEANING_SHARE, MEANING_SHARE]
        return True

    def cross_entropy(self, vectors: Matrix) -> float:
        """Return the mean cross-fitted surprise at gold labels, in nats, of a model on one view and people's labels."""
        found = np.empty(len(self.gold))
        for left_out in self.folds():
            rows = np.concatenate([self.gold[~left_out], self.reviewed_and_names])
            classes = np.concatenate([self.gold_classes[~left_out], self.reviewed_and_name_classes])
            zeros = np.zeros((vectors.shape[1] + 1, len(self.labels)))
            row_weights = np.full(len(rows), GOLD_WEIGHT)
            fitted = coupled_softmax_regression(vectors[rows], classes, row_weights, self.coupling, zeros, STEPS)
            weights = fitted @ self.coupling
            logits = vectors[self.gold[left_out]] @ weights[:-1] + weights[-1]
            found[left_out] = -log_softmax(logits, axis=1)[np.arange(left_out.sum()), self.gold_classes[left_out]]
        return float(found.mean())

    def fit(self, labelled_gold: Matrix, *, quick: bool = False) -> list[Matrix]:
        """Return the class weights [D + 1, K] of each view, trained with the labels of some gold rows (a mask [G]).

        The other gold rows join the pool as unlabelled texts. `quick` starts each round from the last one's weights
        and takes QUICK_STEPS: for cross-fitting, which trains FOLDS times.
        """
        labelled = np.concatenate([self.gold[labelled_gold], self.reviewed_and_names])
        labelled_classes = np.concatenate([self.gold_classes[labelled_gold], self.reviewed_and_name_classes])
        unlabelled = np.concatenate([self.pool, self.gold[~labelled_gold]])
        unlabelled_vectors = [vectors[unlabelled] for vectors in self.vectors]
        expected_rows = expected_shares(self.gold_classes[labelled_gold], len(self.labels)) * len(unlabelled)
        self_labelled, self_labelled_classes = np.empty(0, int), np.empty(0, int)
        zeros = [np.zeros((vectors.shape[1] + 1, len(self.labels))) for vectors in self.vectors]
        uncoupled = zeros
        for number in range(1, ROUNDS + 2):
            rows = np.concatenate([labelled, self_labelled])
            classes = np.concatenate([labelled_classes, self_labelled_classes])
            row_weights = np.concatenate([np.full(len(labelled), GOLD_WEIGHT), np.ones(len(self_labelled))])
            steps = QUICK_STEPS if quick and number > 1 else STEPS
            uncoupled = [
                coupled_softmax_regression(vectors[rows], classes, row_weights, self.coupling, start, steps)
                for vectors, start in zip(self.vectors, uncoupled if quick else zeros, strict=True)
            ]
            weights = [of_view @ self.coupling for of_view in uncoupled]
            # Without quotas the easy classes take all rows: 28 % accuracy on Banking77 instead of 79 %.
            quotas = (expected_rows * FINAL_SHARE * min(number, ROUNDS) / ROUNDS).astype(int)
            most_confident = np.argsort(-mean_probabilities(unlabelled_vectors, weights, self.shares), axis=0)
            self_labelled = unlabelled[np.concatenate([most_confident[:quota, k] for k, quota in enumerate(quotas)])]
            self_labelled_classes = np.repeat(np.arange(len(self.labels)), quotas)
        return weights

    def classifier(self) -> "SelfTrainedClassifier":
        """Return the classifier that has learned from all gold rows."""
        weights = self.fit(np.ones(len(self.gold), bool))
        return SelfTrainedClassifier(self.labels, self.views, weights, self.shares, self.mean)

    def folds(self) -> Iterator[Matrix]:
        """Yield masks [G] of gold rows to leave out: each row once, each class spread evenly.

        scikit-learn's StratifiedKFold refuses gold rows in which no class has FOLDS rows.
        """
        order = np.lexsort((np.random.default_rng(self.seed).random(len(self.gold)), self.gold_classes))
        fold = np.empty(len(self.gold), int)
        fold[order] = np.arange(len(self.gold)) % FOLDS
        return (fold == number for number in range(FOLDS))

    def gold_probabilities(self) -> Matrix:
        """Return class probabilities [G, K] of the gold rows, each from weights trained without its label.

        Cross-fitting over `folds`: what the teacher's accuracy and confidence are judged by.
        """
        found = np.empty((len(self.gold), len(self.labels)))
        for left_out in self.folds():
            weights = self.fit(~left_out, quick=True)
            left_out_vectors = [vectors[self.gold[left_out]] for vectors in self.vectors]
            found[left_out] = mean_probabilities(left_out_vectors, weights, self.shares)
        return found


class SelfTrainedClassifier:
    """Class probabilities of short texts, and the terms behind them."""

    def __init__(
        self,
        labels: Sequence[str],
        views: Sequence[View],
        weights: Sequence[Matrix],
        shares: Sequence[float] | None,
        mean: Matrix | None,
    ) -> None:
        self.labels = list(labels)
        self.views = views
        self.weights = weights
        self.shares = shares
        self.mean = mean

    def probabilities(self, texts: Sequence[str], meanings: Matrix | None = None) -> Matrix:
        """Return class probabilities [N, K], the mean over the views; with an encoder, `meanings` are its [N, D]."""
        vectors = [view.vectors(texts) for view in self.views]
        if self.mean is not None:
            assert meanings is not None, "fitted with an encoder's vectors, which were not given"
            vectors.append(centred(meanings, self.mean))
        return mean_probabilities(vectors, self.weights, self.shares)

    def deciding_terms(self, text: str, label: str, count: int = 3) -> list[str]:
        """Return the words and word pairs of a text that raise a label's logit most, strongest first.

        A term's contribution is exact in its view: its part of the label's logit above the mean over all labels.
        """
        # The view of words alone, if there is one.
        number = next((at for at, view in enumerate(self.views) if len(view.words) == view.topics.shape[1]), 0)
        view = self.views[number]
        tfidf = view.vectorizer.transform([text])
        chosen = self.labels.index(label)
        direction = self.weights[number][:-1, chosen] - self.weights[number][:-1].mean(axis=1)
        contributions = tfidf.data * (direction @ view.topics[:, tfidf.indices])
        of_words = zip(contributions, tfidf.indices, strict=True)
        strongest = sorted((pair for pair in of_words if pair[1] < len(view.words)), reverse=True)[:count]
        return [str(view.words[term]) for contribution, term in strongest if contribution > 0]


def mean_probabilities(
    vectors: Sequence[Matrix], weights: Sequence[Matrix], shares: Sequence[float] | None = None
) -> Matrix:
    """Return class probabilities [N, K]: the mean over views, by their `shares`, of unit vectors [N, D] under weights
    [D + 1, K].
    """
    of_views = [
        softmax(rows @ of_view[:-1] + of_view[-1], axis=1) for rows, of_view in zip(vectors, weights, strict=True)
    ]
    return np.average(of_views, axis=0, weights=shares)

"""Classifies the texts of recipes.text_classification by their words: TF-IDF and logistic regression.

    python -m benchmarks.text_baseline [the flags of the recipe that say which texts]

Prints the accuracy on the same test set. The texts that the recipe holds out for validation are not trained on.
"""

import sys

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from recipes.run.command_line import parse
from recipes.text_classification import Train, corpus


def main(argv):
    flags = parse(argv, {"train": Train}, "python -m benchmarks.text_baseline")
    corpus.check(flags.data)
    data = corpus.load(flags.data)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(data.train.texts.texts, data.train.y)
    score = model.score(data.test.texts.texts, data.test.y)
    print(f"{data.source}: {len(data.train):,} texts, test accuracy {score:.4f} on {len(data.test):,}")


if __name__ == "__main__":
    main(sys.argv[1:])

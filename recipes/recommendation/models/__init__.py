"""The models: raters predict how a user rates an item, retrievers find items for a user."""

from .encoder import Encoder as Encoder
from .rater import Rater as Rater
from .recommender import Recommender as Recommender
from .retriever import Retriever as Retriever

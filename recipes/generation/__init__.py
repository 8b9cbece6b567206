"""Generation: fine-tune a causal language model on texts, answers, chats or preferences, and let it write."""

from .flags import Train as Train
from .recipe import main as main

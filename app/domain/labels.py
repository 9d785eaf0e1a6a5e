"""The polarity labels of the product, in the order of a bundle's logits."""

from typing import Final, Literal

Label = Literal["negative", "neutral", "positive"]

LABELS: Final[tuple[Label, ...]] = ("negative", "neutral", "positive")

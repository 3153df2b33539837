import torch

from mi_helpers import models


def test_a_sentence_has_one_vector_whatever_stands_beside_it() -> None:
    """Of unit length, in double precision, and like that of a sentence of like meaning."""
    texts = [
        "A cat sleeps on the sofa.",
        "The kitten is asleep on a couch, as it is on most afternoons of the year.",
        "Inverts a square matrix.",
    ]
    x = models.embed(texts)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(3).double())
    torch.testing.assert_close(models.embed(texts[:1])[0], x[0])
    assert x[0] @ x[1] > 0.5 > x[0] @ x[2]

"""Tests the order of a pairwise sum."""

import torch

from torch_utils.pairwise import PairwiseSum


def summed(terms):
    total = PairwiseSum()
    for term in terms:
        total.add([term.clone(), -term])
    value, negative = total.total()
    assert torch.equal(value, -negative)
    return value


def test_halves_add_up_to_the_same_floats():
    terms = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    whole = summed(terms)
    assert torch.equal(whole, summed(terms[:4]) + summed(terms[4:]))
    in_order = terms[0].clone()
    for term in terms[1:]:
        in_order += term
    assert not torch.equal(whole, in_order)  # the order is what makes the difference
    torch.testing.assert_close(whole, in_order, rtol=1e-5, atol=1e-5)


def test_any_number_of_terms_and_a_fresh_start():
    terms = torch.arange(1.0, 8.0)
    total = PairwiseSum()
    for count in (1, 3, 7):
        for term in terms[:count]:
            total.add([term.clone()])
        assert total.total()[0] == terms[:count].sum()

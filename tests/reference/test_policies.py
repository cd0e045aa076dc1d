"""The plain policies give the worked examples of the formulas (checked by hand or in a few lines of numpy)."""

import numpy as np
import pytest

import philox
import policies as p
from replay import keep_best, softmax


class FakeView:
    def __init__(self, **facts):
        self.__dict__.update(facts)

    def __len__(self):
        return len(self.positions)


def test_keep_best_protects_sinks_then_the_newest_and_breaks_ties_by_position():
    positions = [0, 1, 2, 5, 7, 9]
    assert keep_best(positions, [1, 1, 1, 1, 1, 1], 4).evict == {7, 9}
    assert keep_best(positions, [0, 3, 2, 9, 1, 0], 4, sinks=1, recent=1).evict == {2, 7}
    assert keep_best(positions, [0] * 6, 3, sinks=2, recent=2).evict == {2, 5, 7}  # sinks in order, then the newest
    assert keep_best(positions, [0] * 6, 9).evict == set()


def test_keep_best_names_what_a_rounding_could_have_chosen_otherwise():
    assert keep_best([0, 1, 2, 3], [1.0, 0.5, 0.5 + 1e-7, 0.1], 2).doubtful == {1, 2}
    assert keep_best([0, 1, 2, 3], [1.0, 0.5, 0.6, 0.1], 2).doubtful == set()


# Two dimensions, one query: logits [1.414214, .707107, -.707107].
V = np.array([[1.0, 0], [0, 2], [3, 3]])
S = np.array([[2.0, 0], [0, 1], [-1, 0]]) @ np.ones(2) / 2**0.5
A = softmax(S)


def test_obcache_damage():
    expected = {"value": [0.384382, 0.373798, 0.099421], "key": [0.554129, 0.096687, 0.025802], "joint": [1.109261, 0.778585, 0.023926]}
    for what, values in expected.items():
        assert p.ObCache(what=what).damage(A, S, V) == pytest.approx(values, abs=2e-6)


def test_caote_is_the_change_of_the_output_when_a_token_leaves():
    assert p.Caote().cost(A, V) == pytest.approx([1.385127, 0.633359, 0.245405], abs=2e-6)
    assert p.Caote(fast=True).cost(A, V) == pytest.approx([2.772976, 0.605120, 0.171361], abs=3e-6)
    for gone in range(3):
        rest = [i for i in range(3) if i != gone]
        change = np.linalg.norm(A[rest] / A[rest].sum() @ V[rest] - A @ V)
        assert p.Caote().cost(A, V)[gone] == pytest.approx(change)


def test_vatp_weighs_attention_by_the_size_of_the_value():
    view = FakeView(attention=[A[None]], value=V)
    assert p.Vatp().term(view, 0, 0) == pytest.approx([0.619985, 0.611391, 0.445918], abs=2e-6)


ROWS = [[0.40, 0.05, 0.20, 0.05, 0.10, 0.20], [0.50, 0.02, 0.05, 0.15, 0.03, 0.05, 0.20], [0.45, 0.02, 0.03, 0.05, 0.20, 0.03, 0.02, 0.20]]


@pytest.mark.parametrize("window,kept", [(2, {0, 3, 4, 6, 7}), (3, {0, 2, 3, 4, 5, 6, 7})])
def test_corm_keeps_what_a_recent_query_found_important(window, kept):
    policy = p.Corm(window=window, recent=2)
    state = policy.fresh(None)
    for row in ROWS:
        count = len(row)
        policy.see(FakeView(rows=[count - 1], attention=[np.array([row])], positions=np.arange(count)), state)
    view = FakeView(positions=np.arange(8))
    assert set(range(8)) - policy.one(view, state, 0).evict == kept


def test_scissorhands_counts_low_attention():
    policy = p.Scissorhands(recent=0, keep=1.0)
    state = policy.fresh(None)
    rows = np.array([[0.4, 0.1, 0.1, 0.2, 0.2], [0.5, 0.05, 0.05, 0.1, 0.3], [0.1, 0.05, 0.25, 0.3, 0.3]])
    for row in rows:
        policy.see(FakeView(rows=[4], attention=[row[None]], positions=np.arange(5)), state)
    # Counts 1, 3, 2, 1, 0: the second token goes first, then the third, then of equals the later one.
    for capacity, gone in ((4, {1}), (3, {1, 2}), (2, {1, 2, 3})):
        assert policy.one(FakeView(positions=np.arange(5), capacity=capacity), state, 0).evict == gone


KEYS = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [1, 0.05], [0, -1]])


def test_r_kv_mixes_importance_and_redundancy():
    policy = p.RKv()
    redundancy = policy.redundancy(KEYS)
    assert redundancy == pytest.approx([0.278548, 0.228112, 0.158085, 0.186991, 0.148263], abs=2e-6)
    z = 0.1 * np.array([0.10, 0.40, 0.20, 0.20, 0.10]) - 0.9 * redundancy
    assert np.argsort(-z).tolist() == [2, 4, 3, 1, 0]


def test_keydiff_and_knorm_read_keys_alone():
    keys = np.array([[1.0, 0], [1, 0.1], [1, -0.1], [0, 1], [3, 0]])
    assert p.KeyDiff().score(keys) == pytest.approx([-0.97, -0.989376, -0.940997, -0.243103, -0.97], abs=1e-5)
    view = FakeView(positions=np.arange(5), key=keys, capacity=2)
    assert p.KeyDiff().one(view, {}, 0).evict == {0, 1, 4}
    assert p.KNorm().one(view, {}, 0).evict == {1, 2, 4}


def test_trim_kv_scores_flip_with_time():
    class Trace:
        prompt = 0
        retention = {0: np.log([[0.95] + [1.0] * 8 + [0.8]])}

    view = FakeView(trace=Trace, cache=FakeView(layer=0, kv_head=0, positions=[]), positions=np.array([0, 9]))
    for seen, expected in ((10, (-0.564226, -0.446287)), (12, (-0.666813, -0.892574))):
        assert p.TrimKv().age_score(view, seen - 1) == pytest.approx(expected, abs=2e-6)


def test_pooling_counts_zeros_beyond_the_ends():
    x = np.array([0.4, 0.1, 0.1, 0.5, 0.02, 0.08])
    assert p.pooled(x, 3, "max") == pytest.approx([0.4, 0.4, 0.5, 0.5, 0.5, 0.08])
    assert p.pooled(x, 3, "avg") == pytest.approx([0.166667, 0.2, 0.233333, 0.206667, 0.2, 0.033333], abs=1e-6)


def test_sentences_end_with_their_delimiters():
    assert p.sentences(["a", ".", "b", "c", "\n", "d"], (".", "\n")) == ([(0, 2), (2, 5)], 5)


def test_keyformer_adds_noise_before_the_temperature():
    class Quiet(p.Keyformer):
        def noise(self, view, head, position):
            return np.array(view.gumbel)

    logits = [np.array([[2.0, 1, 0]])]
    for heat, gumbel, expected in ((1, [0, 0, 0], [0.665241, 0.244728, 0.090031]), (2, [0, 0, 0], [0.506480, 0.307196, 0.186324]),
                                   (1, [0.5, -0.3, 1.2], [0.695492, 0.114964, 0.189544])):
        view = FakeView(phase="prompt", logits=logits, rows=[2], gumbel=gumbel)
        assert Quiet(temperature=heat).term(view, 0, 0) == pytest.approx(expected, abs=2e-6)


def test_philox_gives_its_published_answers():
    # Known answers of Random123's kat_vectors for philox4x32 with 10 rounds.
    assert philox.block(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = (1 << 64) - 1
    assert philox.block(ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]

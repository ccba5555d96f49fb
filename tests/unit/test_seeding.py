import pytest
import torch

from kdutils import seeding


def test_streams_are_all_different() -> None:
    seeds = [seeding.derive(seed, *names) for seed in range(5) for names in [(), ("a",), ("b",), ("a", 0), ("a", 1)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_and_name_do_not_run_together() -> None:
    assert seeding.derive(1, "2") != seeding.derive(12)
    assert seeding.derive(1, 23) != seeding.derive(12, 3)


def test_a_stream_ignores_the_global_state() -> None:
    first = torch.randn(5, generator=seeding.generator(3, "data"))
    torch.manual_seed(99)
    torch.randn(7)
    assert torch.equal(first, torch.randn(5, generator=seeding.generator(3, "data")))


def test_drawing_from_one_stream_does_not_move_another() -> None:
    one, other = seeding.generator(0, "data"), seeding.generator(0, "init")
    expected = torch.randn(3, generator=seeding.generator(0, "init"))
    torch.randn(100, generator=one)
    assert torch.equal(torch.randn(3, generator=other), expected)


def test_streams_are_uncorrelated() -> None:
    n = 10_000
    draws = torch.stack([torch.randn(n, generator=seeding.generator(0, "data", i)) for i in range(6)])
    off_diagonal = torch.corrcoef(draws) - torch.eye(6)
    assert off_diagonal.abs().max() < 5 / n**0.5  # five standard errors


def test_global_rng_is_put_back() -> None:
    before = torch.get_rng_state()
    with seeding.global_rng(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeding.global_rng(0, "init"):
        assert torch.equal(torch.rand(3), first)
    with seeding.global_rng(1, "init"):
        assert not torch.equal(torch.rand(3), first)


def test_global_rng_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs are seeded"))
    with seeding.global_rng(0, "init"):
        first = torch.rand(3)
    torch.random.default_generator.manual_seed(seeding.derive(0, "init"))
    assert torch.equal(torch.rand(3), first)


def test_global_rng_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeding.global_rng(0, "init"):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)

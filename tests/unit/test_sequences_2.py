def test_normalised_by_position_scale_and_shift_do_not_matter(students: Ensemble, batch) -> None:
    """Of the student at every position, and of the teacher as a whole."""
    teacher, generator = deep(8), seeding.generator(0, "scale")
    louder = copy.deepcopy(teacher)
    with torch.no_grad():
        louder[0].weight.mul_(7).add_(torch.linspace(-3, 3, 8))
    for normalise, blind in (("position", True), ("sample", False)):
        bounds = [Hidden(net, "0", "0", normalise=normalise).bind(students, *batch) for net in (teacher, louder)]
        targets = [students.spread(bound.target(*batch)) for bound in bounds]
        h = students.outputs(batch[0], ("0",))["0"]
        scale, shift = (torch.rand(*h.shape[:-1], 1, generator=generator) + 0.5 for _ in range(2))
        plain, moved = (bounds[0].loss({"0": v}, targets[0]) for v in (h, h * scale + shift))
        torch.testing.assert_close(*targets)
        assert torch.allclose(plain, moved, rtol=1e-3) is blind

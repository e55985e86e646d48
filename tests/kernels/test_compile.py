"""Every shipped kernel configuration compiles, without a GPU, to code that is fit to run."""

import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def check():
    return pytest.importorskip("headwater.kernels.compile_check")


@pytest.fixture(scope="module")
def compiled(check):
    """The report of a case, made once."""
    reports = {}

    def report(case):
        if (case.target, case.name) not in reports:
            reports[case.target, case.name] = check.compile_case(case)
        return reports[case.target, case.name]

    return report


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_shipped_configurations_are_fit(check, compiled, target):
    for case in check.shipped(target):
        # The bf16 ones are what a run meets; `headwater bench kernels --compile` goes through all types.
        if "fp16" not in case.name and "fp32" not in case.name:
            report = compiled(case)
            assert not report.faults, check.line(report)


@pytest.mark.parametrize("target", ["sm_86", "sm_89", "sm_100", "sm_120"])
def test_other_architectures(check, compiled, target):
    """Those kernels whose tiling is the architecture's own, and the main one at its widest."""
    names = {"sm_86": "full fp32 k=16", "sm_89": "full bf16 k=64", "sm_100": "thin bf16", "sm_120": "full bf16 k=64"}
    chosen = [case for case in check.shipped(target) if names[target] in case.name]
    if target == "sm_100":
        chosen += [case for case in check.shipped(target) if case.name.startswith("full bf16 k=32 descriptors")]
    assert chosen
    for case in chosen:
        report = compiled(case)
        assert not report.faults, check.line(report)


def test_the_main_kernel_fits_twice_on_a_multiprocessor(check, compiled):
    main = [case for case in check.shipped("sm_90") if "full bf16" in case.name and "descriptors" in case.name]
    assert len(main) == 3
    for case in main:
        report = compiled(case)
        assert report.programs >= 2, check.line(report)
        assert report.matrix_instructions["wgmma"] > 0


def test_an_unfit_configuration_is_found_out(check):
    report = check.compile_case(check.negative_control("sm_90"))
    assert any("spills" in fault for fault in report.faults), check.line(report)


def test_unknown_targets_are_named(check):
    with pytest.raises(ValueError, match="sm_12345"):
        list(check.compile_all(["sm_12345"]))

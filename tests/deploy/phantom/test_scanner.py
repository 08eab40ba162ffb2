"""Scanners differ in grain, sharpness and number format, by the numbers they state."""

from dataclasses import replace

import numpy as np
import pytest

from common.volume import Volume
from deploy.phantom.scanner import HOSPITALS, Scanner, acquire, axial_grid, grain


def _neighbours(noise: np.ndarray) -> float:
    """Correlation of voxels that are neighbours along W."""
    return float(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1])


def test_soft_kernels_have_smooth_and_sharp_ones_bristly_noise():
    rng = np.random.default_rng(0)
    soft, sharp = (grain(rng, (8, 96, 96), s) for s in (-0.7, 0.8))
    assert soft.std() == pytest.approx(1.0, abs=1e-3)
    assert sharp.std() == pytest.approx(1.0, abs=1e-3)
    assert _neighbours(soft) > 0.5
    assert _neighbours(sharp) < 0.0


def test_slices_are_independent_in_noise():
    noise = grain(np.random.default_rng(0), (8, 96, 96), -0.7)
    across = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert abs(across) < 0.02


def test_noise_in_water_is_what_the_scanner_states():
    y, x = np.indices((128, 128)) - 63.5
    water = np.where((x / 60) ** 2 + (y / 40) ** 2 < 1, 0.0, -1000.0)
    grid = axial_grid((4, 128, 128), (3.0, 2.7, 2.7))
    volume = Volume(np.repeat(water[None].astype(np.float32), 4, axis=0), grid)
    scanner = Scanner(noise_hu=20.0)
    hu = acquire(volume, scanner, np.random.default_rng(0)).array
    assert hu[:, water == 0].std() == pytest.approx(20.0, rel=0.05)
    assert hu[:, 54:74, 54:74].std() == pytest.approx(24.0, rel=0.2)
    assert hu[:, :10, :10].std() < 0.7 * hu[:, 54:74, 54:74].std()


def test_sharp_kernels_overshoot_and_soft_ones_blur():
    step = np.full((2, 32, 32), -900.0, dtype=np.float32)
    step[:, :, 16:] = 50.0
    volume = Volume(step, axial_grid((2, 32, 32), (3.0, 3.0, 3.0)))
    quiet = Scanner(noise_hu=0.0)

    def edge(sharpness: float) -> np.ndarray:
        scanner = replace(quiet, sharpness=sharpness)
        return acquire(volume, scanner, np.random.default_rng(0)).array[0, 10]

    assert edge(0.0).max() == 50.0
    assert edge(0.8).max() > 80.0
    assert edge(-0.7)[16] < 0.0


def test_hospitals_differ_and_no_file_can_be_taken_for_a_real_one():
    scanners = [hospital.scanner for hospital in HOSPITALS]
    assert len({s.vendor for s in scanners}) == 4
    assert len({s.transfer_syntax for s in scanners}) == 4
    assert len({s.kernel for s in scanners}) == 4
    assert all("Phantom" in s.model for s in scanners)
    assert [s.vendor for s in scanners] == ["GE", "Siemens", "Philips", "Toshiba"]

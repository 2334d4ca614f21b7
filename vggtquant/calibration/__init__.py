# SPDX-License-Identifier: Apache-2.0
"""Calibration: codes chosen with the help of pictures, at the same bits and the same speed."""

from .methods import METHODS, Method, get_method
from .sequential import calibrate

__all__ = ["METHODS", "Method", "calibrate", "get_method"]

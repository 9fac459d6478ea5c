"""The kernels: cells and scans."""

from melodia.kernels.reference import gru_scan, gru_step, lstm_scan, lstm_step, pair_scan

__all__ = ["gru_scan", "gru_step", "lstm_scan", "lstm_step", "pair_scan"]

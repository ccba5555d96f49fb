"""What every test shares: figures are drawn without a screen."""

import matplotlib

matplotlib.use("Agg")

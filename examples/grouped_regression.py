"""A regression for each group of a data frame, in one call, with groups of different sizes.

The groups are the decades of age of 442 diabetes patients; the target is a measure of the disease a year later. Smaller
groups are padded with rows of weight 0, which are ignored. The three patients under 20 have the same sex: the columns
of this group are linearly dependent, which is flagged in its status and does not affect the other groups.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

import fastvae

COLUMNS = ["sex", "bmi", "bp"]


def main() -> tuple[pd.DataFrame, float]:
    """Return the table of all fits, and the largest difference to the coefficients of groups fitted separately."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    groups = frame.groupby((frame["age"] // 10 * 10).astype(int).rename("decade"))
    group, row = groups.ngroup(), groups.cumcount()
    X = np.zeros((groups.ngroups, row.max() + 1, len(COLUMNS)))
    y, weight = np.zeros(X.shape[:2]), np.zeros(X.shape[:2])
    X[group, row], y[group, row], weight[group, row] = frame[COLUMNS], frame["target"], 1.0
    fit = fastvae.regression.fit(X, y, sample_weight=weight, on_singular="ignore")  # see the status
    table = pd.DataFrame(fit.coef, groups.size().index, COLUMNS)
    table[[f"se_{name}" for name in COLUMNS]] = fit.standard_errors
    table["rows"], table["rank"] = fit.rows, fit.rank
    table["status"] = [fastvae.Status(int(status)).name or "" for status in fit.status]
    print(table.round(2).to_string())
    difference = 0.0
    for i, (_, rows) in enumerate(groups):
        separate = fastvae.regression.fit(rows[COLUMNS].to_numpy(), rows["target"].to_numpy(), on_singular="ignore")
        difference = max(difference, float(np.abs(separate.coef - fit.coef[i]).max()))
    print(f"coefficients of groups fitted separately, without padding, differ by at most {difference:.1e}")
    return table, difference


if __name__ == "__main__":
    main()

"""What it is worth to write to a customer who may leave.

Belongs here: the profit of one retention mail. Does not belong here: who is mailed.

After Neslin et al., "Defection Detection" (Journal of Marketing Research, 2006), per customer:
    p * save_rate * (value - incentive) - (1 - p) * stayer_take_rate * incentive - contact_cost
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml.features import FloatArray, IntArray


@dataclass(frozen=True)
class RetentionEconomics:
    """Assumptions, in USD or as shares; estimates for ranking and reporting, never booked as money.

    Attributes
    ----------
    months_kept : months that a saved customer stays on.
    gross_margin : share of the price that is earned.
    save_rate : share of leavers whom the mail keeps. The random hold-out measures it.
    incentive_months : what is offered, in monthly prices.
    stayer_take_rate : share of those who would have stayed anyway and take the offer.
    contact_cost_usd : cost of one mail.
    default_monthly_price_usd : for a customer whose price is unknown.
    """

    months_kept: float = 6.0
    gross_margin: float = 0.8
    save_rate: float = 0.15
    incentive_months: float = 0.25
    stayer_take_rate: float = 0.2
    contact_cost_usd: float = 0.01
    default_monthly_price_usd: float = 99.0

    def expected_profit(self, probability: FloatArray, monthly_price_usd: FloatArray) -> FloatArray:
        """USD per customer of mailing them, given their probability to leave; NaN prices take the default."""
        price = np.where(np.isnan(monthly_price_usd), self.default_monthly_price_usd, monthly_price_usd)
        incentive = self.incentive_months * price
        value = self.months_kept * self.gross_margin * price
        gained = probability * self.save_rate * (value - incentive)
        given_away = (1 - probability) * self.stayer_take_rate * incentive
        return gained - given_away - self.contact_cost_usd

    def realised_profit(
        self, churned: IntArray, probability: FloatArray, monthly_price_usd: FloatArray
    ) -> FloatArray:
        """USD per row, by what really happened, when those with a positive expected profit are mailed."""
        mailed = self.expected_profit(probability, monthly_price_usd) > 0
        outcome = self.expected_profit(churned.astype(np.float64), monthly_price_usd)
        return np.where(mailed, outcome, 0.0)

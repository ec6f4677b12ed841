create database if not exists ml;

-- Scores as the model gave them; scoring a day again with the same model replaces that day's rows.
create table if not exists ml.churn_scores
(
    customer_id    String,
    feature_date   Date                    comment 'features know nothing of this day or later',
    model_version  String,
    probability    Float64                 comment 'calibrated probability that the label comes true',
    expected_profit Float64                comment 'of mailing this customer, in USD; orders the list',
    reasons        String                  comment 'JSON list of {feature, value, effect}, strongest first',
    holdout        UInt8                   comment '1: kept out of the retention mail to measure its effect',
    scored_at      DateTime64(6, 'UTC')
)
engine = ReplacingMergeTree(scored_at)
order by (feature_date, customer_id, model_version);

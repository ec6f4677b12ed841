with scores as (

    select
        customer_id,
        as_of_date,
        round(sumIf(points, area = 'usage'), 2) as usage_points,
        round(sumIf(points, area = 'engagement'), 2) as engagement_points,
        round(sumIf(points, area = 'money'), 2) as money_points,
        toUInt8(round(usage_points + engagement_points + money_points)) as score,
        toJSONString(mapSort(mapFromArrays(
            groupArray(toString(component)),
            groupArray(map('won', points, 'lost', round(max_points - points, 2)))
        ))) as explanation
    from {{ ref('int_health_components') }}
    group by customer_id, as_of_date

)

select
    customer_id,
    as_of_date,
    score,
    usage_points,
    engagement_points,
    money_points,
    toLowCardinality(multiIf(
        score < {{ threshold('health', 'high_risk_below') }}, 'high_risk',
        score < {{ threshold('health', 'medium_risk_below') }}, 'medium_risk',
        score > {{ threshold('health', 'upsell_above') }}, 'upsell',
        'healthy'
    )) as band,
    explanation
from scores

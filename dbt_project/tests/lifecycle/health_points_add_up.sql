-- Points that the explanation gives add up to the areas, and the areas to the score; won and lost to 100.
with scores as (

    select
        *,
        JSONExtract(explanation, 'Map(String, Map(String, Float64))') as points_by_component
    from {{ ref('customer_health') }}

),

sums as (

    select
        *,
        arraySum(arrayMap(points -> points['won'], mapValues(points_by_component))) as won,
        arraySum(arrayMap(points -> points['lost'], mapValues(points_by_component))) as lost
    from scores

)

select customer_id, score, usage_points, engagement_points, money_points, won, lost
from sums
where
    abs(won - usage_points - engagement_points - money_points) > 0.001
    or abs(won + lost - 100) > 0.001
    or abs(score - won) > 0.501
    or usage_points not between 0 and 40
    or engagement_points not between 0 and 30
    or money_points not between 0 and 30

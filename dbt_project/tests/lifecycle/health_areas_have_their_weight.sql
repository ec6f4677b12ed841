-- Usage weighs 40 points, engagement and money 30 each.
select area, sum(max_points) as points
from {{ ref('health_points') }}
group by area
having points != if(area = 'usage', 40, 30)

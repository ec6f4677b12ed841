{# Each combination of `columns` stands in one row only. Fails with the combinations that repeat. #}
{% test unique_combination(model, columns) %}
select {{ columns | join(', ') }}, count() as row_count
from {{ model }}
group by {{ columns | join(', ') }}
having count() > 1
{% endtest %}

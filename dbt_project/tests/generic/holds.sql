{# `expression` is true in each row. Fails with the rows in which it is not, or is null. #}
{% test holds(model, expression) %}
select *
from {{ model }}
where not coalesce({{ expression }}, false)
{% endtest %}

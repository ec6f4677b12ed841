{#
    Timestamp of the meter event for the use from `first_instant` on, a DateTime64(6, 'UTC') of whole seconds,
    which is all that Stripe takes: the first one in the slot, so that it lies in the same billing period there,
    whichever way the period's bound was rounded. Only for what begins in the last second of a day, the one
    before, since the next is another slot's.
#}
{% macro slot_start(first_instant) -%}
    toDateTime64(
        if(
            toDate(addMicroseconds({{ first_instant }}, 999999), 'UTC') = toDate({{ first_instant }}, 'UTC'),
            toDateTime(addMicroseconds({{ first_instant }}, 999999), 'UTC'),
            toDateTime({{ first_instant }}, 'UTC')
        ),
        6, 'UTC'
    )
{%- endmacro %}

-- Stripe cuts the list of lines in an invoice short; the rest must have been fetched by itself.
with cut as (
    select
        object_id as invoice_id,
        length(JSONExtractArrayRaw(payload, 'lines', 'data')) as lines_within
    from {{ ref('stg_stripe_objects') }}
    where object = 'invoice' and not is_deleted and JSONExtractBool(payload, 'lines', 'has_more')
),

known as (
    select invoice_id, count() as lines_known
    from {{ ref('stg_stripe_invoice_lines') }}
    group by invoice_id
)

select cut.invoice_id, cut.lines_within, known.lines_known
from cut
left join known on cut.invoice_id = known.invoice_id
where known.lines_known <= cut.lines_within

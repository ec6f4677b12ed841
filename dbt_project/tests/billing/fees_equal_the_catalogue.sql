-- Overage and platform fees are their quantity at their price, to within half a cent, or somebody's least fee; and
-- each rate of the platform fee is that of the catalogue's band, or in the last band a contract's. Names the customers
-- of lines for which that is not so.
with priced_lines as (

    select
        customer_id,
        line_type,
        period_start,
        toInt256(assumeNotNull(quantity)) as line_quantity,
        toInt256(assumeNotNull(unit_price_cents)) as price,
        toInt256(assumeNotNull(unit_quantity)) as price_quantity,
        amount_cents,
        abs(2 * amount_cents * price_quantity - 2 * greatest(0, line_quantity) * price) <= price_quantity as is_priced
    from {{ ref('invoice_lines') }}
    where line_type != 'subscription' and unit_quantity > 0

),

bands as (

    select
        fee_basis_points,
        up_to_revenue_cents is null as is_last,
        lagInFrame(up_to_revenue_cents, 1, -9223372036854775808) over (
            order by band rows between unbounded preceding and current row
        ) as above_cents,
        coalesce(up_to_revenue_cents, 9223372036854775807) as up_to_cents
    from {{ ref('platform_fee_bands') }}

),

contracts as (

    select distinct
        customer_id,
        platform_fee_minimum_cents as minimum_cents,
        platform_fee_basis_points as basis_points
    from {{ ref('int_subscription_terms') }}

)

select customer_id, line_type, period_start, line_quantity, price, amount_cents
from priced_lines
where
    not is_priced
    and (line_type = 'overage' or (customer_id, amount_cents) not in (select customer_id, minimum_cents from contracts))

union all

select customer_id, line_type, period_start, line_quantity, price, amount_cents
from priced_lines
cross join bands
where
    line_type = 'platform_fee'
    and 10000 * line_quantity > above_cents * price_quantity
    and 10000 * line_quantity <= up_to_cents * price_quantity
    and price != fee_basis_points
    and not (
        is_last
        and (customer_id, price) in (
            select customer_id, basis_points
            from contracts
            where basis_points is not null
        )
    )

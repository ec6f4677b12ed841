{{ config(order_by=['queued_on', 'email_type']) }}

with told_of_messages as (

    -- A webhook comes at least once and in any order: what was told of a message is a set.
    select provider, provider_message_id, groupUniqArray(event_type) as told
    from {{ ref('stg_email_webhooks') }}
    where provider_message_id != ''
    group by provider, provider_message_id

),

handed_over as (

    -- One row a mail, however often it was handed over.
    select
        log.mail_id as mail_id,
        groupUniqArrayArray(message.told) as told
    from {{ ref('stg_email_log') }} as log
    left join told_of_messages as message
        on log.provider = message.provider and coalesce(log.provider_message_id, '') = message.provider_message_id
    group by log.mail_id

),

mails as (

    select
        mail.email_type as email_type,
        toDate(mail.queued_at, 'UTC') as queued_on,
        -- A mail that waits to be sent again was sent. The two copies may be of different moments.
        multiIf(
            handed_over.mail_id != 0 or coalesce(mail.outcome, '') = 'sent', 'sent',
            mail.processed_at is null, 'waiting',
            coalesce(mail.outcome, '') = 'skipped', 'skipped',
            'failed'
        ) as state,
        handed_over.told as told
    from {{ ref('stg_mails') }} as mail
    left join handed_over
        on mail.mail_id = handed_over.mail_id
    where toDate(mail.queued_at, 'UTC') <= {{ as_of_date() }}

)

select
    toLowCardinality(email_type) as email_type,
    queued_on,
    count() as queued,
    countIf(state = 'waiting') as waiting,
    countIf(state = 'skipped') as skipped,
    countIf(state = 'failed') as failed,
    countIf(state = 'sent') as sent,
    countIf(has(told, 'email.delivered')) as delivered,
    countIf(has(told, 'email.bounced')) as bounced,
    countIf(has(told, 'email.complained')) as complained,
    countIf(has(told, 'email.opened')) as opened,
    countIf(has(told, 'email.clicked')) as clicked
from mails
group by email_type, queued_on

"""Alembic's entry point; imports every domain's tables so that drift between models and revisions shows."""

import sqlalchemy as sa
from alembic import context

import apex_pipelines.billing.models
import apex_pipelines.customers.models
import apex_pipelines.lifecycle.models
import apex_pipelines.messaging.models
import apex_pipelines.stripe.models
import apex_pipelines.webhooks.models  # noqa: F401 - imported for their tables
from apex_pipelines.platform.postgres import Base

engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=sa.NullPool)
with engine.begin() as connection:
    # Two processes may start at once; the second waits and finds nothing to do.
    connection.execute(sa.text("select pg_advisory_xact_lock(hashtext('apex.alembic'))"))
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    context.run_migrations()

"""The offline Stripe: a stateful stand-in over HTTP that Stripe's own client drives without patching.

Belongs here: what Stripe documents of the objects that this platform uses, the passing of its time, and
controls under `/_sandbox/` that make it fail, repeat itself or come late. Does not belong here: anything that
the platform does with Stripe (`apex_pipelines/stripe`).
"""

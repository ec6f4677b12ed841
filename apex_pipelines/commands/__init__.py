"""The subcommands of `apex`, one file a domain: each reads arguments, calls a domain, prints."""

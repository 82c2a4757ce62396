"""The host: pools of replicas, threads, and cancel by job_id. It knows the contract, and no engine."""

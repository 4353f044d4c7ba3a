"""From a partition to a plan: what each worker holds, computes and sends."""

"""Plans: what each worker holds, computes and sends."""

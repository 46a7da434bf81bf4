"""What tests and benchmarks share: small detectors, hostile files, hosts on one machine, gloo ranks. No run uses it."""

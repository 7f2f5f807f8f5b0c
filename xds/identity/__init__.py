"""Who a workload is: SPIFFE certificates."""

"""What all jobs share: checks, containers, the choice of backend, status flags."""

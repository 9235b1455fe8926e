"""The lab's API in this process, apart from the unit tests: here moto is taught what it lacks."""

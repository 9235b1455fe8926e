"""The lab's API in this process. Apart from tests/unit, because here moto is taught what it lacks."""

"""What an instance printed on its console."""

from __future__ import annotations

from botocore.exceptions import ClientError

from flotilla.aws.session import client, described
from flotilla.settings import Settings


def output(settings: Settings, instance_id: str) -> str:
    """The console text of an instance, "" while there is none or the instance is gone.

    Raises Unreachable when the API is down.
    """
    ec2 = client(settings, "ec2")
    with described(settings, f"read the console of {instance_id}"):
        try:
            # What is on the console now; without Latest, AWS shows what was there at boot.
            answer = ec2.get_console_output(InstanceId=instance_id, Latest=True)
        except ClientError as error:
            if error.response["Error"]["Code"].startswith("InvalidInstanceID"):
                return ""
            if error.response["Error"]["Code"] != "UnsupportedOperation":
                raise
            # Instances that are not built on Nitro cannot do Latest.
            answer = ec2.get_console_output(InstanceId=instance_id)
    return str(answer.get("Output", ""))

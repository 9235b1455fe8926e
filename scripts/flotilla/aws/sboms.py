"""Bills of materials in the bucket of releases: one object an image, never written twice."""

from __future__ import annotations

from botocore.exceptions import ClientError

from flotilla.aws.errors import code
from flotilla.aws.session import client, described
from flotilla.settings import Settings

_ABSENT = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
_OURS_ALREADY = {"BucketAlreadyOwnedByYou", "OperationAborted"}


def put(settings: Settings, image_id: str, document: str) -> None:
    """Keep the document of an image; the first one stays.

    Images are baked before the fleet is provisioned: a bucket that is not there yet is made, and
    gets its settings then.
    """
    with described(settings, f"keep the bill of materials of {image_id}"):
        try:
            _put(settings, image_id, document)
        except ClientError as error:
            if code(error) != "NoSuchBucket":
                raise
            _make(settings)
            _put(settings, image_id, document)


def get(settings: Settings, image_id: str) -> bytes | None:
    """The document of an image, as it is kept; None where there is none."""
    bucket = settings.name_of("artifacts")
    with described(settings, f"read the bill of materials of {image_id}"):
        try:
            body = client(settings, "s3").get_object(Bucket=bucket, Key=_key(image_id))["Body"]
        except ClientError as error:
            if code(error) in _ABSENT:
                return None
            raise
        return bytes(body.read())


def url(settings: Settings, image_id: str) -> str:
    """Where it is, as the AWS CLI takes it."""
    return f"s3://{settings.name_of('artifacts')}/{_key(image_id)}"


def _put(settings: Settings, image_id: str, document: str) -> None:
    try:
        client(settings, "s3").put_object(
            Bucket=settings.name_of("artifacts"),
            Key=_key(image_id),
            Body=document.encode(),
            ContentType="application/vnd.cyclonedx+json",
            IfNoneMatch="*",
        )
    except ClientError as error:
        if code(error) not in _TAKEN:
            raise


def _make(settings: Settings) -> None:
    # us-east-1 is the one region that S3 refuses to be told.
    where = {"CreateBucketConfiguration": {"LocationConstraint": settings.region}}
    try:
        client(settings, "s3").create_bucket(
            Bucket=settings.name_of("artifacts"),
            **({} if settings.region == "us-east-1" else where),
        )
    except ClientError as error:
        # Two images of one bake find it missing at the same moment.
        if code(error) not in _OURS_ALREADY:
            raise


def _key(image_id: str) -> str:
    return f"sbom/{image_id}.cdx.json"

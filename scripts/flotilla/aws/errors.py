"""Turn what botocore raises into errors that say what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from flotilla.errors import FlotillaError, Refused, Unreachable
from flotilla.settings import Settings

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.CredentialRetrievalError,
    boto.ConfigNotFound,
    boto.ConfigParseError,
    boto.TokenRetrievalError,
    boto.UnauthorizedSSOTokenError,
)
_REJECTED = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_FORBIDDEN = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "Forbidden",
    "UnauthorizedOperation",
}
_BUSY = {
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "Unavailable",
}


@contextmanager
def described(settings: Settings, doing: str) -> Iterator[None]:
    """Run AWS calls; ``doing`` completes "could not ..." ("list the instances").

    Raises Unreachable when the API is down or too busy, Refused when credentials are missing,
    rejected or not allowed to, FlotillaError for every other answer. Also usable as a decorator.
    A caller that expects an error code catches ClientError inside.
    """
    try:
        yield
    except (boto.BotoCoreError, boto.ClientError) as error:
        raise describe(settings, doing, error) from error
    except ResponseParserError as error:  # what answers is not AWS: a proxy's page, a broken API
        raise Unreachable(
            f"could not {doing}: the AWS API at {_endpoint(settings)} gave no answer of AWS's",
            why=str(error).splitlines()[0][:200],
            next=settings.aws.hint,
        ) from error


def describe(
    settings: Settings, doing: str, error: boto.BotoCoreError | boto.ClientError
) -> FlotillaError:
    """The error to raise instead of ``error``."""
    if isinstance(error, _NO_CREDENTIALS):
        return _no_credentials(settings, doing, error)
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return Unreachable(
            f"could not {doing}: the AWS API at {_endpoint(settings)} does not answer "
            f"({type(error).__name__})",
            next=settings.aws.hint,
        )
    if isinstance(error, boto.ClientError):
        return _answered(settings, doing, error)
    return FlotillaError(f"could not {doing}: {error}")


def code(error: boto.ClientError) -> str:
    """The error code AWS gave, "" when there is none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _no_credentials(settings: Settings, doing: str, error: boto.BotoCoreError) -> Refused:
    file = settings.aws.credentials_file
    return Refused(
        f"could not {doing}: no AWS credentials for profile {settings.aws.profile or 'default'!r} "
        f"in {file or 'the usual places'} ({error})",
        why=f"fleet.aws of environment {settings.env!r} says where they are",
        untouched="Nothing was changed",
        next=settings.aws.hint,
    )


def _answered(settings: Settings, doing: str, error: boto.ClientError) -> FlotillaError:
    name, operation = code(error), error.operation_name
    said = f"{operation} answered {name}: {error.response.get('Error', {}).get('Message', '')}"
    if name in _REJECTED:
        return Refused(
            f"could not {doing}: the AWS API at {_endpoint(settings)} rejects the credentials of "
            f"profile {settings.aws.profile or 'default'!r} ({said})",
            untouched="Nothing was changed by this call",
            next=settings.aws.hint,
        )
    if name in _FORBIDDEN:
        return Refused(
            f"could not {doing}: profile {settings.aws.profile or 'default'!r} is not allowed "
            f"to call {operation} ({said})",
            untouched="Nothing was changed by this call",
            next=f"allow {operation} in the profile's IAM policy",
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if name in _BUSY or status >= 500:
        return Unreachable(
            f"could not {doing}: {said}",
            why="the API is failing or throttles this account",
            next="the same command again in a minute",
        )
    return FlotillaError(f"could not {doing}: {said}")


def _endpoint(settings: Settings) -> str:
    return settings.aws.endpoint_url or f"region {settings.region}"

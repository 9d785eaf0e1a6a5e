"""From a route to the classifier: the one way for every protocol."""

from collections.abc import Sequence

from fastapi import Request

from app.api.admission import admit
from app.api.dependencies import cache_use, timeout_s, while_connected
from app.api.lines import Line
from app.api.middleware import TIMELINE
from app.api.problems import problem_name
from app.api.schemas import ModelName, answer_member
from app.domain.errors import InvalidText, ServiceError
from app.inference.batcher import Lane
from app.inference.bundle import Manifest
from app.inference.classifier import CacheUse, Classified, Classifier
from app.inference.timeline import Timeline
from app.rollout import Lease
from app.services import Services


async def answer(
    request: Request, services: Services, texts: Sequence[object], lane: Lane, lease: Lease | None = None
) -> tuple[Manifest, list[Classified | ServiceError]]:
    """Return who answered and, in order, an answer for each of `texts` or the error that concerns it alone.

    Without a `lease` the model is the one whose turn it is.

    Raises:
        ServiceError: `texts` were refused, or not all answered in time.
    """
    if (gate := request.scope["state"].get("gate")) is not None:
        await admit(request, gate, len(texts))
    longest_s = services.timeout_s if lane is Lane.INTERACTIVE else services.batch_timeout_s
    timeline = request.scope[TIMELINE] = Timeline()
    with lease or services.models.lease(texts[0] if texts else "") as used:
        try:
            outcomes = await _classify(
                request, used.model.classifier, texts, lane=lane, longest_s=longest_s, timeline=timeline
            )
        except ServiceError as error:
            if len(texts) == 1:
                services.shedder.saw(remembered=False)
            services.metrics.observe_unanswered(problem_name(error), len(texts))
            raise
        if len(texts) == 1 and isinstance(outcomes[0], Classified):
            services.shedder.saw(remembered=outcomes[0].cached)
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                services.metrics.observe_unanswered(problem_name(outcome))
            else:
                services.metrics.observe_answer(outcome)
        used.answered(texts, outcomes)
        return used.model.manifest, outcomes


async def _classify(
    request: Request,
    classifier: Classifier,
    texts: Sequence[object],
    *,
    lane: Lane,
    longest_s: float,
    timeline: Timeline,
) -> list[Classified | ServiceError]:
    within_s, use = timeout_s(request, longest_s), cache_use(request)
    if len(texts) == 1 and use is CacheUse.FULL:
        remembered = classifier.recall(texts[0], lane, within_s=within_s, timeline=timeline)
        if remembered is not None:
            return [remembered]
    async with while_connected(request):
        return await classifier.classify_many(texts, timeout_s=within_s, lane=lane, cache_use=use, timeline=timeline)


async def answer_all(
    request: Request, services: Services, texts: Sequence[str], lease: Lease | None = None
) -> tuple[Manifest, list[Classified]]:
    """Do the same for protocols that have no place for the error of one text; a text alone is a person's.

    Raises:
        ServiceError: any of `texts` has no answer.
    """
    lane = Lane.INTERACTIVE if len(texts) == 1 else Lane.BULK
    manifest, outcomes = await answer(request, services, texts, lane, lease)
    return manifest, [_classified(outcome, number, len(texts)) for number, outcome in enumerate(outcomes)]


async def answer_lines(services: Services, lines: Sequence[Line], use: CacheUse, *, patient: bool) -> tuple[bytes, int]:
    """Return the lines that answer `lines`, and how many of them tell an error; charges nobody.

    Raises:
        Overloaded: there is no room for them, and they are not `patient`.
    """
    metrics = services.metrics
    texts = [line.text for line in lines if line.problem is None]
    with services.models.lease(texts[0] if texts else "") as lease:
        try:
            outcomes = await lease.model.classifier.classify_many(texts, timeout_s=None, cache_use=use, patient=patient)
        except ServiceError as error:
            metrics.observe_unanswered(problem_name(error), len(texts))
            raise
        lease.answered(texts, outcomes)
        model = ModelName.of(lease.model.manifest)
    following = iter(outcomes)
    answers = []
    errors = 0
    for line in lines:
        outcome = line.problem or next(following)
        if isinstance(outcome, ServiceError):
            errors += 1
            metrics.observe_unanswered(problem_name(outcome))
        else:
            metrics.observe_answer(outcome)
        answers.append(b"%b,%b}\n" % (line.head, answer_member(outcome, model)))
    return b"".join(answers), errors


def _classified(outcome: Classified | ServiceError, number: int, texts: int) -> Classified:
    if isinstance(outcome, InvalidText) and texts > 1:
        raise type(outcome)(f"Text {number}: {outcome}")
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome

"""SearchService: messages in, messages out."""

import grpc
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from nearhit.v1.search_service_pb2_grpc import SearchServiceServicer

from service import convert
from service.application import Application, time_limit
from service.keys import parse_cache


class SearchServicer(SearchServiceServicer):
    """Vector search."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def Search(
        self, request: search_pb.SearchRequest, context: grpc.ServicerContext
    ) -> search_pb.SearchResponse:
        """Find the nearest entries."""
        return self._search(parse_cache(request.parent), [request], context)[0]

    def BatchSearch(
        self, request: search_pb.BatchSearchRequest, context: grpc.ServicerContext
    ) -> search_pb.BatchSearchResponse:
        """Find the nearest entries of several queries."""
        cache = parse_cache(request.parent)
        convert.check_batch_size(len(request.requests), most=self._app.config.server.max_batch)
        for item in request.requests:
            item.parent = item.parent or request.parent
        return search_pb.BatchSearchResponse(responses=self._search(cache, list(request.requests), context))

    def _search(
        self, cache: str, requests: list[search_pb.SearchRequest], context: grpc.ServicerContext
    ) -> list[search_pb.SearchResponse]:
        searches = [convert.to_search(request) for request in requests]
        convert.check_batch_parents(cache, [parent for parent, _ in searches])
        answers = self._app.search.search(
            self._app.replicas.get(cache),
            [query for _, query in searches],
            timeout_seconds=time_limit(context),
        )
        return [
            convert.from_search(cache, answer, full=request.view == pb.ENTRY_VIEW_FULL)
            for request, answer in zip(requests, answers, strict=True)
        ]

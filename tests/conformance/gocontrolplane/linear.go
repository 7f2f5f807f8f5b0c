package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	conformance "xds.test/xdsconformance/v1"
)

// linearCaches has a LinearCache for each type of each node, because a LinearCache serves the same to all nodes. It
// selects one as a MuxCache does, whose caches cannot be added while it serves.
type linearCaches struct {
	mutex sync.Mutex
	nodes map[string]map[string]*cache.LinearCache
}

// set updates the resources of the node that have changed.
func (l *linearCaches) set(_ context.Context, request *conformance.SetRequest) error {
	resources := map[string]map[string]types.Resource{}
	for _, served := range request.Types {
		resources[served.TypeUrl] = map[string]types.Resource{}
		for _, item := range served.Resources {
			if item.Ttl != nil {
				return status.Error(codes.Unimplemented, "TTLs")
			}
			message, err := item.Body.UnmarshalNew()
			if err != nil {
				return err
			}
			resources[served.TypeUrl][item.Name] = message
		}
	}
	for typeURL := range resources {
		if _, err := l.of(request.Node, typeURL); err != nil {
			return err
		}
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for typeURL, of := range l.nodes[request.Node] {
		var removed []string
		changed, known := resources[typeURL], of.GetResources()
		for name, resource := range known {
			if now, found := changed[name]; !found {
				removed = append(removed, name)
			} else if proto.Equal(now, resource) {
				delete(changed, name)
			}
		}
		if len(changed)+len(removed) > 0 {
			if err := of.UpdateResources(changed, removed); err != nil {
				return err
			}
		}
	}
	if len(request.Types) == 0 {
		delete(l.nodes, request.Node)
	}
	return nil
}

// of returns the cache of a type of a node.
func (l *linearCaches) of(node, typeURL string) (*cache.LinearCache, error) {
	if cache.GetResponseType(typeURL) == types.UnknownType {
		return nil, fmt.Errorf("no cache defined for key %s", typeURL)
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.nodes[node] == nil {
		l.nodes[node] = map[string]*cache.LinearCache{}
	}
	if l.nodes[node][typeURL] == nil {
		l.nodes[node][typeURL] = cache.NewLinearCache(typeURL)
	}
	return l.nodes[node][typeURL], nil
}

func (l *linearCaches) CreateWatch(request *cache.Request, sub cache.Subscription, value chan cache.Response) (func(), error) {
	selected, err := l.of(request.GetNode().GetId(), request.GetTypeUrl())
	if err != nil {
		return nil, err
	}
	return selected.CreateWatch(request, sub, value)
}

func (l *linearCaches) CreateDeltaWatch(request *cache.DeltaRequest, sub cache.Subscription, value chan cache.DeltaResponse) (func(), error) {
	selected, err := l.of(request.GetNode().GetId(), request.GetTypeUrl())
	if err != nil {
		return nil, err
	}
	return selected.CreateDeltaWatch(request, sub, value)
}

func (l *linearCaches) Fetch(ctx context.Context, request *cache.Request) (cache.Response, error) {
	selected, err := l.of(request.GetNode().GetId(), request.GetTypeUrl())
	if err != nil {
		return nil, err
	}
	return selected.Fetch(ctx, request)
}

// A server of go-control-plane, and on another port the adapter of `xds conformance`. It prints both addresses.
// Its argument is the kind of its cache: snapshot, ads or linear.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	conformance "xds.test/xdsconformance/v1"
)

type adapter struct {
	conformance.UnimplementedAdapterServer
	set func(context.Context, *conformance.SetRequest) error
}

// Set replaces the resources of the node, if the cache supports all of them.
func (a *adapter) Set(ctx context.Context, request *conformance.SetRequest) (*conformance.SetResponse, error) {
	for _, served := range request.Types {
		if cache.GetResponseType(served.TypeUrl) == types.UnknownType {
			return nil, status.Error(codes.Unimplemented, served.TypeUrl)
		}
		for _, item := range served.Resources {
			if len(item.Aliases) > 0 {
				return nil, status.Error(codes.Unimplemented, "aliases")
			}
			if strings.HasPrefix(item.Name, "xdstp:") {
				return nil, status.Error(codes.Unimplemented, "collections")
			}
		}
	}
	return &conformance.SetResponse{}, a.set(ctx, request)
}

// setSnapshot makes the resources the snapshot of the node.
func setSnapshot(ctx context.Context, snapshots cache.SnapshotCache, request *conformance.SetRequest) error {
	if len(request.Types) == 0 {
		snapshots.ClearSnapshot(request.Node)
		return nil
	}
	snapshot := &cache.Snapshot{}
	for _, served := range request.Types {
		var items []types.ResourceWithTTL
		for _, item := range served.Resources {
			message, err := item.Body.UnmarshalNew()
			if err != nil {
				return err
			}
			resource := types.ResourceWithTTL{Resource: message}
			if item.Ttl != nil {
				ttl := item.Ttl.AsDuration()
				resource.TTL = &ttl
			}
			items = append(items, resource)
		}
		snapshot.Resources[cache.GetResponseType(served.TypeUrl)] = cache.NewResourcesWithTTL(served.Version, items)
	}
	return snapshots.SetSnapshot(ctx, request.Node, snapshot)
}

func main() {
	var served cache.Cache
	var set func(context.Context, *conformance.SetRequest) error
	var options []config.XDSOption
	switch kind := os.Args[1]; kind {
	case "snapshot", "ads":
		snapshots := cache.NewSnapshotCache(kind == "ads", cache.IDHash{}, nil)
		served = snapshots
		set = func(ctx context.Context, request *conformance.SetRequest) error {
			return setSnapshot(ctx, snapshots, request)
		}
		if kind == "ads" {
			options = append(options, sotw.WithOrderedADS())
		}
	case "linear":
		nodes := &linearCaches{nodes: map[string]map[string]*cache.LinearCache{}}
		served, set = nodes, nodes.set
	default:
		log.Fatalf("unknown cache %q", kind)
	}
	xds := server.NewServer(context.Background(), served, nil, options...)
	grpcServer := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, xds)
	cluster.RegisterClusterDiscoveryServiceServer(grpcServer, xds)
	endpoint.RegisterEndpointDiscoveryServiceServer(grpcServer, xds)
	extension.RegisterExtensionConfigDiscoveryServiceServer(grpcServer, xds)
	listener.RegisterListenerDiscoveryServiceServer(grpcServer, xds)
	route.RegisterRouteDiscoveryServiceServer(grpcServer, xds)
	route.RegisterScopedRoutesDiscoveryServiceServer(grpcServer, xds)
	route.RegisterVirtualHostDiscoveryServiceServer(grpcServer, xds)
	runtime.RegisterRuntimeDiscoveryServiceServer(grpcServer, xds)
	secret.RegisterSecretDiscoveryServiceServer(grpcServer, xds)
	adapterServer := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	conformance.RegisterAdapterServer(adapterServer, &adapter{set: set})
	xdsSocket, adapterSocket := listen(), listen()
	fmt.Println(xdsSocket.Addr(), adapterSocket.Addr())
	go adapterServer.Serve(adapterSocket)
	log.Fatal(grpcServer.Serve(xdsSocket))
}

func listen() net.Listener {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return socket
}

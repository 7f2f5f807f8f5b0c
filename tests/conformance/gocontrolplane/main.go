// A server of go-control-plane with the adapter of `xds conformance`. It listens on the address in its argument.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"

	"xds.test/conformance"
)

type adapter struct {
	conformance.UnimplementedAdapterServer
	cache cache.SnapshotCache
}

// Set makes the resources the snapshot of the node.
func (a *adapter) Set(ctx context.Context, request *conformance.SetRequest) (*conformance.SetResponse, error) {
	if len(request.Types) == 0 {
		a.cache.ClearSnapshot(request.Node)
		return &conformance.SetResponse{}, nil
	}
	snapshot := &cache.Snapshot{}
	for _, served := range request.Types {
		var items []types.Resource
		for _, item := range served.Resources {
			message, err := item.Body.UnmarshalNew()
			if err != nil {
				return nil, err
			}
			items = append(items, message)
		}
		snapshot.Resources[cache.GetResponseType(served.TypeUrl)] = cache.NewResources(served.Version, items)
	}
	return &conformance.SetResponse{}, a.cache.SetSnapshot(ctx, request.Node, snapshot)
}

func main() {
	snapshots := cache.NewSnapshotCache(false, cache.IDHash{}, nil)
	xds := server.NewServer(context.Background(), snapshots, nil)
	grpcServer := grpc.NewServer()
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
	conformance.RegisterAdapterServer(grpcServer, &adapter{cache: snapshots})
	socket, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(socket.Addr())
	log.Fatal(grpcServer.Serve(socket))
}

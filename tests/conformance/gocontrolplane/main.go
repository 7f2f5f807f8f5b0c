// A server of go-control-plane, and on another port the adapter of `xds conformance`. It prints both addresses.
package main

import (
	"context"
	"fmt"
	"log"
	"net"

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
		var items []types.ResourceWithTTL
		for _, item := range served.Resources {
			message, err := item.Body.UnmarshalNew()
			if err != nil {
				return nil, err
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
	adapterServer := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	conformance.RegisterAdapterServer(adapterServer, &adapter{cache: snapshots})
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

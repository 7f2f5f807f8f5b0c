import com.google.protobuf.Any;
import com.google.protobuf.DescriptorProtos.FileDescriptorSet;
import com.google.protobuf.Descriptors.Descriptor;
import com.google.protobuf.Descriptors.FileDescriptor;
import com.google.protobuf.DynamicMessage;
import com.google.protobuf.Message;
import io.envoyproxy.controlplane.cache.v3.SimpleCache;
import io.envoyproxy.controlplane.cache.v3.Snapshot;
import io.envoyproxy.controlplane.server.V3DiscoveryServer;
import io.envoyproxy.envoy.config.cluster.v3.Cluster;
import io.envoyproxy.envoy.config.endpoint.v3.ClusterLoadAssignment;
import io.envoyproxy.envoy.config.listener.v3.Listener;
import io.envoyproxy.envoy.config.route.v3.RouteConfiguration;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ServerCalls;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A server of java-control-plane, and on another port the adapter of `xds conformance`. It prints both addresses.
 * Its argument is the file with the descriptors of the adapter's messages.
 */
public class Main {
  private static final String SERVICE = "xdsconformance.v1.Adapter";
  private static final int MAX_MESSAGE = 64 << 20;
  private static final List<String> TYPES =
      List.of("Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration");

  private final SimpleCache<String> cache = new SimpleCache<>(node -> node.getId());
  private final Descriptor request;
  private final Descriptor response;

  Main(Path descriptors) throws Exception {
    Map<String, FileDescriptor> files = new HashMap<>();
    for (var file : FileDescriptorSet.parseFrom(Files.readAllBytes(descriptors)).getFileList()) {
      var imports = file.getDependencyList().stream().map(files::get).toArray(FileDescriptor[]::new);
      files.put(file.getName(), FileDescriptor.buildFrom(file, imports));
    }
    FileDescriptor adapter = files.get("xds/conformance/v1/adapter.proto");
    request = adapter.findMessageTypeByName("SetRequest");
    response = adapter.findMessageTypeByName("SetResponse");
  }

  /** Makes the resources of a request the snapshot of its node, if a snapshot supports all of them. */
  private void set(DynamicMessage message) throws Exception {
    String node = (String) get(message, "node");
    List<?> kinds = (List<?>) get(message, "types");
    if (kinds.isEmpty()) {
      cache.clearSnapshot(node);
      return;
    }
    Map<String, List<Any>> bodies = new HashMap<>();
    Map<String, String> versions = new HashMap<>();
    for (Object kind : kinds) {
      String[] parts = ((String) get(kind, "type_url")).split("\\.");
      String type = parts[parts.length - 1];
      if (!TYPES.contains(type)) {
        throw unsupported(type);
      }
      versions.put(type, (String) get(kind, "version"));
      for (Object resource : (List<?>) get(kind, "resources")) {
        if (!((List<?>) get(resource, "aliases")).isEmpty()) {
          throw unsupported("aliases");
        }
        if (((Message) resource).hasField(((Message) resource).getDescriptorForType().findFieldByName("ttl"))) {
          throw unsupported("TTLs");
        }
        if (((String) get(resource, "name")).startsWith("xdstp:")) {
          throw unsupported("collections");
        }
        Any body = Any.parseFrom(((Message) get(resource, "body")).toByteString());
        bodies.computeIfAbsent(type, name -> new ArrayList<>()).add(body);
      }
    }
    cache.setSnapshot(
        node,
        Snapshot.create(
            unpack(bodies, Cluster.class),
            versions.getOrDefault("Cluster", ""),
            unpack(bodies, ClusterLoadAssignment.class),
            versions.getOrDefault("ClusterLoadAssignment", ""),
            unpack(bodies, Listener.class),
            versions.getOrDefault("Listener", ""),
            unpack(bodies, RouteConfiguration.class),
            versions.getOrDefault("RouteConfiguration", ""),
            List.of(),
            ""));
  }

  private static Exception unsupported(String what) {
    return Status.UNIMPLEMENTED.withDescription(what).asException();
  }

  private static Object get(Object message, String field) {
    return ((Message) message).getField(((Message) message).getDescriptorForType().findFieldByName(field));
  }

  private static <T extends Message> List<T> unpack(Map<String, List<Any>> bodies, Class<T> type) throws Exception {
    List<T> messages = new ArrayList<>();
    for (Any body : bodies.getOrDefault(type.getSimpleName(), List.of())) {
      messages.add(body.unpack(type));
    }
    return messages;
  }

  private ServerServiceDefinition adapter() {
    MethodDescriptor<DynamicMessage, DynamicMessage> method =
        MethodDescriptor.<DynamicMessage, DynamicMessage>newBuilder()
            .setType(MethodType.UNARY)
            .setFullMethodName(SERVICE + "/Set")
            .setRequestMarshaller(ProtoUtils.marshaller(DynamicMessage.getDefaultInstance(request)))
            .setResponseMarshaller(ProtoUtils.marshaller(DynamicMessage.getDefaultInstance(response)))
            .build();
    return ServerServiceDefinition.builder(SERVICE)
        .addMethod(
            method,
            ServerCalls.asyncUnaryCall(
                (message, observer) -> {
                  try {
                    set(message);
                    observer.onNext(DynamicMessage.getDefaultInstance(response));
                    observer.onCompleted();
                  } catch (Exception error) {
                    observer.onError(error);
                  }
                }))
        .build();
  }

  private static NettyServerBuilder listen() {
    return NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
        .maxInboundMessageSize(MAX_MESSAGE);
  }

  public static void main(String[] arguments) throws Exception {
    Main main = new Main(Path.of(arguments[0]));
    V3DiscoveryServer xds = new V3DiscoveryServer(main.cache);
    Server server =
        listen()
            .addService(xds.getAggregatedDiscoveryServiceImpl())
            .addService(xds.getClusterDiscoveryServiceImpl())
            .addService(xds.getEndpointDiscoveryServiceImpl())
            .addService(xds.getListenerDiscoveryServiceImpl())
            .addService(xds.getRouteDiscoveryServiceImpl())
            .addService(xds.getSecretDiscoveryServiceImpl())
            .build()
            .start();
    Server adapter = listen().addService(main.adapter()).build().start();
    System.out.printf("127.0.0.1:%d 127.0.0.1:%d%n", server.getPort(), adapter.getPort());
    server.awaitTermination();
  }
}

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

const timeout = 30 * time.Second

// networks is a folder with a link to the network namespace of each pod, NAMESPACE.NAME.
type networks string

// runKubelet serves port-forwards over mutual TLS, with the code that kubelet and container runtimes use.
func runKubelet() error {
	listen := flag.String("listen", "", "address")
	certificate := flag.String("tls-cert-file", "", "server certificate")
	key := flag.String("tls-private-key-file", "", "its key")
	authority := flag.String("client-ca-file", "", "CA of client certificates")
	folder := flag.String("networks", "", "folder of network namespaces")
	flag.Parse()
	root, err := os.ReadFile(*authority)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(root)
	http.Handle("/portForward/{namespace}/{pod}", networks(*folder))
	server := http.Server{
		Addr:      *listen,
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients},
	}
	return server.ListenAndServeTLS(*certificate, *key)
}

func (n networks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	pod := r.PathValue("namespace") + "." + r.PathValue("pod")
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, n, pod, "", options, time.Hour, timeout, portforward.SupportedProtocols)
}

// PortForward connects to a port on the loopback address of a pod.
func (n networks) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	file, err := os.Open(filepath.Join(string(n), pod))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	connection, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), timeout)
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		io.Copy(connection, stream)
		connection.Close()
	}()
	io.Copy(stream, connection)
	return nil
}

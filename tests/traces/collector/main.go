// A collector of OpenTelemetry's with two parts: its receiver of OTLP, and an exporter that writes a line of JSON for each export.
//
//	go build -C tests/traces/collector -o "$PWD/target/otelcol"
//	SWITCHYARD_OTELCOL=target/otelcol python -m pytest tests/traces
package main

import (
	"context"
	"log"
	"os"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

type config struct {
	Path string `mapstructure:"path"`
}

type file struct {
	mutex sync.Mutex
	out   *os.File
}

func (f *file) push(_ context.Context, traces ptrace.Traces) error {
	line, err := (&ptrace.JSONMarshaler{}).MarshalTraces(traces)
	if err != nil {
		return err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	_, err = f.out.Write(append(line, '\n'))
	return err
}

func newExporter(ctx context.Context, settings exporter.Settings, typed component.Config) (exporter.Traces, error) {
	out, err := os.Create(typed.(*config).Path)
	if err != nil {
		return nil, err
	}
	f := &file{out: out}
	stop := exporterhelper.WithShutdown(func(context.Context) error { return out.Close() })
	return exporterhelper.NewTraces(ctx, settings, typed, f.push, stop)
}

func factories() (otelcol.Factories, error) {
	defaults := func() component.Config { return &config{} }
	traces := exporter.WithTraces(newExporter, component.StabilityLevelDevelopment)
	toFile := exporter.NewFactory(component.MustNewType("file"), defaults, traces)
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap[exporter.Factory](toFile)
	return otelcol.Factories{Receivers: receivers, Exporters: exporters, Telemetry: otelconftelemetry.NewFactory()}, err
}

func main() {
	files := confmap.ResolverSettings{DefaultScheme: "file", ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()}}
	command := otelcol.NewCommand(otelcol.CollectorSettings{
		BuildInfo:              component.BuildInfo{Command: "otelcol", Description: "Writes traces to a file.", Version: "0.1.0"},
		Factories:              factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: files},
	})
	if err := command.Execute(); err != nil {
		log.Fatal(err)
	}
}

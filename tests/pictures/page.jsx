// Draws one dashboard: `index.html?board=fleet&url=http://127.0.0.1:9090&from=EPOCH&to=EPOCH&scrape=15&scanner=.+`.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import {
  FieldConfigOptionsRegistry, applyFieldOverrides, createTheme, getFieldDisplayValues, identityOverrideProcessor,
  standardEditorsRegistry, standardTransformers, standardTransformersRegistry, transformDataFrame,
} from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } from '@grafana/ui';
import { ask, marks, timeRange, windowOf } from './prometheus.js';

const theme = createTheme({ colors: { mode: 'dark' } });
const WIDTH = 1600, CELL = WIDTH / 24, ROW = 38, GAP = 8, HEAD = 112;

const CONFIGURED = [
  ['unit', 'unit'], ['min', 'min'], ['max', 'max'], ['decimals', 'decimals'], ['displayName', 'displayName'], ['noValue', 'noValue'],
  ['color', 'color'], ['thresholds', 'thresholds'], ['mappings', 'mappings'], ['links', 'links'],
];
const CUSTOM = [
  'drawStyle', 'lineWidth', 'fillOpacity', 'lineInterpolation', 'showPoints', 'stacking', 'thresholdsStyle', 'spanNulls', 'axisPlacement', 'axisSoftMax',
  'axisLabel', 'scaleDistribution', 'gradientMode', 'barAlignment', 'pointSize', 'hideFrom', 'cellOptions', 'align', 'width', 'minWidth', 'inspect',
];
const property = (id, path, isCustom) => ({
  id: isCustom ? `custom.${id}` : id, path, isCustom, name: id, process: identityOverrideProcessor, shouldApply: () => true, getItemsCount: () => 0,
});
const registry = new FieldConfigOptionsRegistry(() => [
  ...CONFIGURED.map(([id, path]) => property(id, path, false)), ...CUSTOM.map((id) => property(id, id, true)),
]);
const BUILT_IN = { // what the plugin of the panel type itself sets where the dashboard says nothing
  timeseries: { drawStyle: 'line', lineWidth: 1, fillOpacity: 0, lineInterpolation: 'linear', showPoints: 'auto', pointSize: 5, spanNulls: false,
    stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' }, axisPlacement: 'auto', axisLabel: '', gradientMode: 'none',
    barAlignment: 0, scaleDistribution: { type: 'linear' }, hideFrom: { legend: false, tooltip: false, viz: false } },
  'state-timeline': { fillOpacity: 70, lineWidth: 0 },
  table: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false },
};
standardEditorsRegistry.setInit(() => []);
standardTransformersRegistry.setInit(() =>
  Object.values(standardTransformers).filter((each, index, all) => all.findIndex(({ id }) => id === each.id) === index)
    .map((transformation) => ({ id: transformation.id, name: transformation.name, transformation, editor: () => null })));

async function answered(panel, at) {
  const targets = panel.targets.map((target) => ({ ...target, alone: panel.targets.length === 1 }));
  const frames = (await Promise.all(targets.map((target) => ask(target, at)))).flat();
  const shaped = panel.transformations?.length ? await lastValueFrom(transformDataFrame(panel.transformations, frames)) : frames;
  const defaults = { ...panel.fieldConfig.defaults, custom: { ...BUILT_IN[panel.type], ...panel.fieldConfig.defaults.custom } };
  return applyFieldOverrides({
    data: shaped, fieldConfig: { ...panel.fieldConfig, defaults }, fieldConfigRegistry: registry, replaceVariables: (text) => text, theme, timeZone: 'utc',
  });
}

function values(panel, data) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: (text) => text, theme, data, sparkline: false, timeZone: 'utc',
  });
}

const nothing = (panel, width, height) => (
  <div style={{ width, height, display: 'grid', placeItems: 'center', fontSize: 18 }}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>
);

const DRAW = {
  stat: (panel, data, size) => values(panel, data).slice(0, 1).map(({ display }) => (
    <BigValue key="value" theme={theme} {...size} value={{ ...display, title: undefined }} {...panel.options} />
  )),
  bargauge: (panel, data, { width, height }) => {
    const found = values(panel, data);
    const titleWidth = 10 * Math.max(...found.map(({ display }) => display.title?.length ?? 0));
    return found.map(({ display, field, view, colIndex }) => (
      <BarGauge key={display.title} theme={theme} width={width} height={height / found.length - 4} value={display} field={field}
        display={view?.getFieldDisplayProcessor(colIndex ?? 0)} alignmentFactors={{ title: 'x'.repeat(titleWidth / 8), text: '100%' }} {...panel.options} itemSpacing={4} />
    ));
  },
  table: (panel, data, size) => <Table data={data[0]} {...size} cellHeight={panel.options.cellHeight} initialSortBy={panel.options.sortBy ?? []} />,
  timeseries: (panel, data, size, at, drawn) => (
    <TimeSeries frames={data} {...size} timeRange={timeRange(at)} timeZone="utc" legend={{ ...panel.options.legend, calcs: [] }} options={panel.options}>
      {(config) => { config.addHook('draw', (plot) => drawMarks(plot, drawn)); return null; }}
    </TimeSeries>
  ),
};

// The state timeline is no component of @grafana/ui, so this is a small one of our own: a bar for each series, cut where
// its state changes. Words and colours are Grafana's: they come from the panel's mappings.
const AXIS = 22, LABEL = 7;

DRAW['state-timeline'] = (panel, data, { width, height }, at, drawn) => {
  const series = data.map((frame) => ({ times: frame.fields[0].values, field: frame.fields[1] }));
  const names = series.map(({ field }) => field.config.displayName ?? field.config.displayNameFromDS ?? field.name);
  const left = 16 + LABEL * Math.max(...names.map((name) => name.length));
  const x = (time) => left + ((time / 1000 - at.from) / (at.to - at.from)) * (width - left - 8);
  const row = (height - AXIS) / series.length, bar = Math.min(row * panel.options.rowHeight, 60);
  const step = [300, 600, 900, 1800, 3600, 7200].find((seconds) => (at.to - at.from) / seconds <= width / 80) ?? 14400;
  const ticks = Array.from({ length: 200 }, (_, index) => (Math.ceil(at.from / step) + index) * step * 1000).filter((time) => time < at.to * 1000);
  const text = { fill: theme.colors.text.primary, fontSize: 12, dominantBaseline: 'middle' };
  return (
    <svg width={width} height={height}>
      {ticks.map((time) => (
        <g key={time}>
          <line x1={x(time)} x2={x(time)} y1={0} y2={height - AXIS} stroke={theme.colors.border.weak} />
          <text x={x(time)} y={height - AXIS / 2 + 2} {...text} textAnchor="middle">{new Date(time).toISOString().slice(11, 16)}</text>
        </g>
      ))}
      {series.map(({ times, field }, index) => (
        <g key={names[index]}>
          <text x={left - 8} y={row * (index + 0.5)} {...text} textAnchor="end">{names[index]}</text>
          {spans(times, field.values, at.to * 1000).map(({ from, to, value }) => {
            const shown = field.display(value), wide = x(to) - x(from);
            return (
              <g key={from}>
                <rect x={x(from)} y={row * (index + 0.5) - bar / 2} width={Math.max(wide, 1)} height={bar} fill={shown.color} fillOpacity={0.85} />
                {wide > 8 * shown.text.length && (
                  <text x={x(from) + 6} y={row * (index + 0.5)} {...text} fill={theme.colors.getContrastText(shown.color)}>{shown.text}</text>
                )}
              </g>
            );
          })}
        </g>
      ))}
      {drawn.map((mark, index) => (
        <line key={index} x1={x(mark.from)} x2={x(mark.from)} y1={0} y2={height - AXIS} strokeDasharray="6 4" stroke={theme.visualization.getColorByName(mark.colour)} />
      ))}
    </svg>
  );
};

function spans(times, values, end) {
  const found = [];
  times.forEach((time, index) => {
    if (values[index] !== null && (index === 0 || values[index] !== values[index - 1])) {
      const last = values.findIndex((value, other) => other > index && value !== values[index]);
      found.push({ from: time, to: last < 0 ? end : times[last], value: values[index] });
    }
  });
  return found;
}

function drawMarks(plot, drawn) {
  const context = plot.ctx;
  context.save();
  for (const mark of drawn) {
    const x = plot.valToPos(mark.from, 'x', true);
    context.strokeStyle = context.fillStyle = theme.visualization.getColorByName(mark.colour);
    context.setLineDash([6, 4]);
    context.beginPath();
    context.moveTo(x, plot.bbox.top);
    context.lineTo(x, plot.bbox.top + plot.bbox.height);
    context.stroke();
    context.beginPath();
    context.moveTo(x - 5, plot.bbox.top + plot.bbox.height + 7);
    context.lineTo(x + 5, plot.bbox.top + plot.bbox.height + 7);
    context.lineTo(x, plot.bbox.top + plot.bbox.height);
    context.fill();
  }
  context.restore();
}

function Panel({ panel, at, data, error, drawn }) {
  const { x, y, w, h } = panel.gridPos;
  if (panel.type === 'row') {
    return <div style={{ position: 'absolute', left: 12, top: HEAD + y * ROW + 4, fontSize: 18, fontWeight: 500 }}>⌄ {panel.title}</div>;
  }
  const box = { position: 'absolute', left: x * CELL + GAP / 2, top: HEAD + y * ROW, width: w * CELL - GAP, height: h * ROW - GAP };
  const draw = DRAW[panel.type];
  if (!draw || error) {
    return <div className="error" style={{ ...box, background: '#a00', color: 'white' }}>{error ?? `unknown panel type ${panel.type}`}</div>;
  }
  const empty = !data.some((frame) => frame.length > 0);
  return (
    <div style={box} data-panel={panel.title} data-empty={empty}>
      <PanelChrome title={panel.title} width={box.width} height={box.height}>
        {(width, height) => (empty ? nothing(panel, width, height) : draw(panel, data, { width, height }, at, drawn))}
      </PanelChrome>
    </div>
  );
}

function Head({ board, at, drawn }) {
  const seen = [...new Map(drawn.map((mark) => [mark.text, mark])).values()];
  const time = (epoch) => new Date(epoch).toISOString().slice(11, 19);
  const chosen = [['Job', 'All'], ['Instance', 'All'], ['Scanner', at.scanner === '.+' ? 'All' : at.scanner], ['Window', at.windowText]];
  return (
    <div style={{ padding: '10px 12px', height: HEAD }}>
      <span style={{ fontSize: 24, marginRight: 24 }}>{board.title}</span>
      {chosen.map(([name, value]) => <span key={name} style={{ marginRight: 18 }}>{name} <b>{value}</b></span>)}
      {board.links.map(({ title, url }) => <a key={url} href={url} style={{ color: '#6e9fff', marginRight: 18 }}>↗ {title}</a>)}
      <span style={{ float: 'right' }}>{time(at.from * 1000)} to {time(at.to * 1000)} UTC</span>
      <div style={{ marginTop: 8, fontSize: 13, lineHeight: '20px' }}>
        {seen.map((mark) => (
          <span key={mark.text} style={{ marginRight: 16, whiteSpace: 'nowrap', display: 'inline-block' }}>
            <span style={{ color: theme.visualization.getColorByName(mark.colour) }}>▲</span> {time(mark.from)} {mark.text}
          </span>
        ))}
      </div>
    </div>
  );
}

async function main() {
  const asked = new URLSearchParams(location.search);
  const number = (name) => parseFloat(asked.get(name));
  const at = { url: asked.get('url'), from: number('from'), to: number('to'), scrape: number('scrape'), scanner: asked.get('scanner') ?? '.+' };
  // JSON has no infinity, so the lowest step of thresholds is null in a file; Grafana, too, restores it when it loads one.
  const board = JSON.parse(await (await fetch(`${asked.get('board')}.json`)).text(), (key, value) => (
    key === 'steps' ? value.map((step) => ({ ...step, value: step.value ?? -Infinity })) : value
  ));
  const { text, value } = await windowOf(board, at);
  Object.assign(at, { window: value, windowText: text });
  const drawn = await marks(board, at);
  const panels = await Promise.all(board.panels.map(async (panel) => {
    try {
      if (panel.type === 'row') return { panel };
      return { panel, data: await answered(panel, at) };
    } catch (error) {
      return { panel, error: String(error) };
    }
  }));
  const height = HEAD + ROW * Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  document.body.style.cssText = `margin: 0; width: ${WIDTH}px; height: ${height}px; position: relative; overflow: hidden`;
  createRoot(document.getElementById('root')).render(
    <>
      <GlobalStyles />
      <Head board={board} at={at} drawn={drawn} />
      {panels.map((each) => <Panel key={each.panel.id} {...each} at={at} drawn={drawn} />)}
    </>
  );
  setTimeout(() => { document.title = `ready ${WIDTH} ${height}`; }, 1500);
}

main().catch((error) => { document.body.innerHTML = `<pre class="error">${error.stack}</pre>`; document.title = 'failed'; });

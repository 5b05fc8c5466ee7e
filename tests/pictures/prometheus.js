// What the data source of Grafana does: fills in variables, asks Prometheus, makes data frames of the answers.
import { FieldType, dateTime, toDataFrame } from '@grafana/data';

const seconds = (text) => parseFloat(text) * { s: 1, m: 60, h: 3600, d: 86400 }[text.slice(-1)];

export function filledIn(text, at, least) {
  const step = Math.max((at.to - at.from) / 300, least ? seconds(least) : 0, at.scrape);
  const rate = Math.max(step + at.scrape, 4 * at.scrape);
  const values = {
    $__rate_interval: `${Math.ceil(rate)}s`,
    $__range: `${Math.round(at.to - at.from)}s`,
    $job: '.+',
    $instance: '.+',
    $scanner: at.scanner,
  };
  return Object.entries(values).reduce((done, [name, value]) => done.replaceAll(name, value), text);
}

async function get(at, path, parameters) {
  const response = await fetch(`${at.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== 'success') {
    throw new Error(`${answer.error}: ${parameters.query}`);
  }
  return answer.data.result;
}

export async function ask(target, at) {
  const query = filledIn(target.expr, at, target.interval);
  if (target.format === 'table') {
    return [tableOf(await get(at, 'query', { query, time: at.to }), target)];
  }
  const found = target.instant
    ? (await get(at, 'query', { query, time: at.to })).map(({ metric, value }) => ({ metric, values: [value] }))
    : await get(at, 'query_range', { query, start: at.from, end: at.to, step: Math.max((at.to - at.from) / 300, at.scrape) });
  return found.map((each) => seriesOf(each, target, at));
}

function seriesOf({ metric, values }, target, at) {
  const format = target.legendFormat === '__auto' ? '' : target.legendFormat;
  const name = format.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '') || Object.values(metric).join(' ') || 'Value';
  const found = new Map(values.map(([time, value]) => [Math.round(time * 1000), value === 'NaN' ? null : parseFloat(value)]));
  const step = Math.max((at.to - at.from) / 300, at.scrape) * 1000;
  const times = target.instant ? [...found.keys()] : Array.from({ length: 301 }, (_, index) => Math.round(at.from * 1000 + index * step));
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: times },
      { name, type: FieldType.number, values: times.map((time) => found.get(time) ?? null), config: { displayNameFromDS: name } },
    ],
  });
}

function tableOf(found, target) {
  const labels = [...new Set(found.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: found.map(({ value }) => value[0] * 1000) },
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: found.map(({ metric }) => metric[label] ?? '') })),
      { name: target.alone ? 'Value' : `Value #${target.refId}`, type: FieldType.number, values: found.map(({ value }) => parseFloat(value[1])) },
    ],
  });
}

export async function marks(board, at) {
  const asked = board.annotations.list.map(async (mark) => {
    const step = 1;
    const query = filledIn(mark.expr, at);
    const found = await get(at, 'query_range', { query, start: at.from, end: at.to, step });
    return found.flatMap(({ metric, values }) => ({
      colour: mark.iconColor,
      from: values[0][0] * 1000,
      text: mark.titleFormat.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? ''),
    }));
  });
  return (await Promise.all(asked)).flat();
}

export function timeRange(at) {
  const [from, to] = [dateTime(at.from * 1000), dateTime(at.to * 1000)];
  return { from, to, raw: { from, to } };
}

"Training fast on one device: what its notebook does not show"
import numpy as np, pytest, torch
from stylekit.core import StylekitError
from stylekit.mini.fast import BatchedMuon, ForeachEma, Limit, TimeSchedule, run_steps
from stylekit.mini.unet import BaseTrainer, new_unet
from stylekit.training import Ema, orthogonalize


def one_matrix(m, rounds=5):
    "The iteration written for one matrix"
    x = m if m.shape[0] <= m.shape[1] else m.T
    x = x/(x.norm()+1e-7)
    gram, q, one = x@x.T, None, torch.eye(len(x), dtype=x.dtype)
    for _ in range(rounds):
        p = 3.4445*one - 4.7750*gram + 2.0315*gram@gram
        q, gram = p if q is None else p@q, p@p@gram
    o = q@x
    return o if m.shape[0] <= m.shape[1] else o.T


@pytest.mark.parametrize('shape', [(8, 30), (30, 8), (64, 64), (192, 128), (16, 144), (1, 5), (5, 1)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_one_matrix_keeps_its_bits(shape, dtype):
    "Muon trained what ships with the one-matrix form: a training that goes on must not notice the batches"
    g = torch.Generator().manual_seed(0)
    for k in range(4):
        m = torch.randn(*shape, generator=g).to(dtype)*10.**(k-2)
        wide = torch.randn(shape[0], 2*shape[1], generator=g).to(dtype)[:, ::2]     # not contiguous
        for a in (m, m.T, wide): assert torch.equal(orthogonalize(a), one_matrix(a))


def test_batches_of_matrices():
    many = torch.randn(2, 3, 9, 5, generator=torch.Generator().manual_seed(1))
    got = orthogonalize(many)
    for i in range(2):
        for k in range(3): assert torch.allclose(got[i, k], one_matrix(many[i, k]), atol=1e-5)


@pytest.mark.parametrize('vectors, matrices', [(True, False), (False, True)])
def test_muon_of_one_kind_of_parameters(vectors, matrices):
    params = [torch.ones(3)]*vectors + [torch.ones(2, 3), torch.ones(4, 2, 1, 1)]*matrices
    params = [p.clone() for p in params]
    opt = BatchedMuon(params)
    opt.lr.fill_(.1)
    opt.step([torch.ones_like(p) for p in params])
    assert all((p < 1).all() for p in params)


def test_tall_kernels():
    "A kernel with more rows than columns comes out of `orthogonalize` transposed, and goes back into its own shape"
    p = torch.zeros(20, 1, 3, 3)
    opt = BatchedMuon([p], weight_decay=0.)
    opt.lr.fill_(1.)
    grad = torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    opt.step([grad])
    momentum = .05*grad/grad.norm()
    step = (grad/grad.norm()).lerp(momentum, .95).flatten(1)
    assert torch.allclose(p.flatten(1), -one_matrix(step)*.2*20**.5, atol=1e-4)


def test_the_average_is_of_what_learns():
    "Frozen weights stay out of it, and a module that is copied to keeps its own"
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    net[0].requires_grad_(False)
    avg, slow = ForeachEma(net, .5), Ema(net, .5)
    assert avg.avg.keys() == slow.avg.keys() == {'1.weight', '1.bias'}
    with torch.no_grad():
        for p in net.parameters(): p.add_(1.)
    first = net[0].weight.clone()
    avg.update()
    slow.update(net, 10**6)
    assert all(torch.equal(avg.avg[k], slow.avg[k]) for k in slow.avg)
    avg.copy_to(net)
    assert torch.equal(net[1].weight, slow.avg['1.weight']) and torch.equal(net[0].weight, first)


def test_losses_that_are_no_numbers_end_a_stage():
    lr = torch.zeros(())
    def step(share): return torch.tensor(float('inf'))
    for steps in (1, 10, 25):
        with pytest.raises(StylekitError, match='NaN or infinite at step'):
            run_steps(step, lr, TimeSchedule(1.), Limit(steps=steps))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_graph_is_the_step_it_recorded():
    "At a rate of 0 its losses are those of eager steps, up to the noise each draws; at another rate it learns"
    z, c = [torch.randn(2, 64, *shape, device='cuda').half() for shape in ((16, 16, 16), (32, 192))]
    pool, unet = type('Pool', (), dict(z=z, c=c)), new_unet()
    losses, trainers = [], [BaseTrainer(unet, pool, c[0, 0].float(), batch=64) for _ in range(2)]
    trainers[1].record()
    for trainer in trainers:
        seen = []
        for _ in range(40):
            trainer.step()
            seen.append(trainer.loss.item())
        losses.append(np.mean(seen))
    assert len({*seen}) == 40 and losses[0] == pytest.approx(losses[1], rel=.1)       # each replay draws anew
    before = [w.clone() for w in trainer.weights]
    assert all(torch.equal(w, p.detach().to('cuda')) for w, p in zip(before, unet.parameters()))
    trainer.opt.lr.fill_(1e-3)
    trainer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.weights))
